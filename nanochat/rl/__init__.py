"""Reinforcement learning of programs that a compiler and a judge have seen: rewards, advantages, policies, runs."""

__all__: list[str] = []
