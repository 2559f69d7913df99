"""Parts of `build_suite.py`.

For all suites: tasks (what a plan is made of), build (the steps), packages, splits, room, show.
Of each kind: text, text_readers, text_tasks; vision, vision_readers, vision_tasks, dinov2.
"""
