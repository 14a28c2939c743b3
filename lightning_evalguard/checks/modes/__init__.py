"""Is every module in the mode it should be in?"""
