"""A conditional VAE on MNIST, and which KL weight is right for it."""

import os

# Threads that wait must sleep, not spin: on two cores shared with a browser or a second run, OpenMP's spinning made
# training five times slower (321 against 1,697 images/s), and on a quiet machine it wins nothing that was measured.
# It must stand in the environment before torch is imported, hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
