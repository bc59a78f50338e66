"""What this machine has of what slimtts can use.

Works with the standard library alone: the rest may be what is missing.
"""
