"""Does an evaluation change anything?"""
