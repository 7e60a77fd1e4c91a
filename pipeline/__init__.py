"""A conditional VAE on MNIST, and which KL weight is right for it."""

import os
import time

STARTED = time.monotonic()  # before the imports that take seconds

# How long a waiting OpenMP thread spins before it sleeps; it must be set before torch is imported, hence here. On two
# cores shared with other work the default's long spinning made training five times slower; never spinning costs a
# quarter on a quiet machine (12,238 images/s; with this 16,805, and 6,355 beside two busy processes).
SPINNING, SPINS = "GOMP_SPINCOUNT", "10000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault(SPINNING, SPINS)
