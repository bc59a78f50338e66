"""Healing: the student learns from the teacher."""
