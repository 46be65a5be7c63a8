"""What the service refuses by an error of its own; `service.problems` gives each of them a status."""

from weightgen.errors import WeightgenError


class Conflict(WeightgenError):
    """The request does not fit the state of the job that it names."""


class OverLimit(WeightgenError):
    """A request is larger than this server takes."""


class QueueFull(WeightgenError):
    """As many jobs wait as may."""


class StoreFull(WeightgenError):
    """As many bytes are stored as may be."""
