"""The local steps of the clients that a rank hosts: optimizer states, gradients, buffers, random states."""
