"""Figures and tables from what a run left in its workdir."""

from medinit_jax.report.page import write_report

__all__ = ["write_report"]
