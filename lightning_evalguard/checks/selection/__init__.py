"""Does the score justify what is chosen by it?"""
