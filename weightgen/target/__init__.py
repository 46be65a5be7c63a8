"""The network whose weights are made: its module and spec, its trunk and head, many of them side by side."""
