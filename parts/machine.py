"""Stand-in."""
from parts.runtime import *  # noqa
