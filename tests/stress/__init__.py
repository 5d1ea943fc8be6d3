"""Kill real processes at random points of their life, go on, and compare with the undisturbed run."""
