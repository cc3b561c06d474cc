"""Public optimisers and functions: HIG, GaussNewton, LevenbergMarquardt, MultiHIG, record."""
