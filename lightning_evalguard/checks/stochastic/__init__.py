"""Does an evaluation draw random numbers?"""
