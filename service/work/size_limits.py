"""How large the networks and tasks of a server may be; what is larger is refused before the work begins."""

from dataclasses import dataclass

from service.errors import OverLimit
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """The largest request, in classes, support examples of all classes together, and parameters of one network."""

    max_classes: int
    max_support_examples: int
    max_parameters: int

    @classmethod
    def of(cls, settings: Settings) -> "SizeLimits":
        """The limits that the settings name."""
        return cls(settings.max_classes, settings.max_support_examples, settings.max_parameters)

    def check_task(self, *, num_classes: int, support_per_class: int) -> None:
        """Raise OverLimit for a task of too many classes or support examples."""
        if num_classes > self.max_classes:
            raise OverLimit(
                f"the data set has {num_classes} classes, and this server takes at most {self.max_classes}; "
                "choose or upload one with fewer"
            )
        if num_classes * support_per_class > self.max_support_examples:
            raise OverLimit(
                f"{support_per_class} examples of each of {num_classes} classes are {num_classes * support_per_class}, "
                f"and this server takes at most {self.max_support_examples}; ask for a smaller support_per_class"
            )

    def check_network(self, arch: str, *, num_parameters: int) -> None:
        """Raise OverLimit for a network of too many parameters; `num_parameters` may be the fewest that it can have."""
        if num_parameters > self.max_parameters:
            raise OverLimit(
                f"{arch!r} has {num_parameters} parameters or more, and this server takes at most "
                f"{self.max_parameters}; ask for a smaller width or depth"
            )
