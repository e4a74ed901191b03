"""The report: one self-contained page that shows an audit, to people who have never seen the code.

write_report(Audit((subject,)), Path("report.html"))
"""

from ncp_rl.audit.report.page import write_report

__all__ = ["write_report"]
