"""Is a logged score what it claims?"""
