"""The service's own errors; `service.problems` gives each of them a status."""

from weightgen.errors import WeightgenError


class Conflict(WeightgenError):
    """The request does not fit the state of the job that it names."""


class OverLimit(WeightgenError):
    """A request is larger than this server takes."""


class QueueFull(WeightgenError):
    """The queue holds as many jobs as may wait."""


class StoreFull(WeightgenError):
    """A store of artifacts holds as many bytes as it may."""
