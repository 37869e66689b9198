"""Rollouts of trained policies: scores, statistics, videos and the run report."""
