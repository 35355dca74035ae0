"""Trainings in both frameworks: within rounding (digits), and to the same bits (course)."""
