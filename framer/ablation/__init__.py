"""Ablation studies: tables of runs that differ in a few settings, as in the paper's Tables 2 to 5 and 7."""
