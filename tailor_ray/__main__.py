"""`python -m tailor_ray …` is `tailor-ray …`: jobs on a cluster need no console script."""

from tailor_ray.cli import main

main()
