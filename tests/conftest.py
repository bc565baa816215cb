"""What holds for all tests."""

from hypothesis import settings

# A busy machine may stop for longer than any deadline that means something; and what fails once must fail again.
settings.register_profile("unhurried", deadline=None, derandomize=True, database=None)
settings.load_profile("unhurried")
