"""Demo data sets, cut from pictures that published Python packages carry: one module a data set."""
