"""What every stage runs on: a refusal, its command line, files, records of many kinds, processes."""


class Refused(Exception):
    """An input that cannot be used. The message names the thing, the place and the way out."""
