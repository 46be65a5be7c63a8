"""logah: a low-rank graph hypernetwork, for any module."""
