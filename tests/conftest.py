"""What all tests share."""

from hypothesis import settings

# How long an example takes is the machine's, which may be busy: no law of ours.
settings.register_profile("weir", deadline=None)
settings.load_profile("weir")
