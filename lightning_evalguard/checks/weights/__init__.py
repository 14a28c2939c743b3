"""Whose weights are scored?"""
