"""This package holds the measurements of `python -m bench`: what is compared, how, and with which bounds."""
