"""Trainings that the studio starts: processes of the command line, which closing the studio does not stop."""


class Trainings:
    """The trainings that were started, and those that wait."""
