"""The method: rewards, advantages, switches, and the trainers."""
