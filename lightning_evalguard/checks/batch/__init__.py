"""Does a sample get the same outputs whatever else is in its batch?"""
