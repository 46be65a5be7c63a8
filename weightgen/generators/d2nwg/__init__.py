"""d2nwg: latent diffusion over weights."""
