"""mip: a hypernetwork conditioned on a support set."""
