"""`sfrjax check`: everything that is wrong with a folder of images, named at once, and what fitting it will cost."""

from sfrjax.check.cost import Cost
from sfrjax.check.report import Finding, Item, Report, print_report
from sfrjax.check.run import check_dataset, check_images

__all__ = ["Cost", "Finding", "Item", "Report", "check_dataset", "check_images", "print_report"]
