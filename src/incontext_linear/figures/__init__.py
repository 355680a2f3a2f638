"""Every plot of the pipelines, one module a pipeline: tables in, Matplotlib figures out; `style` is
the common look.
"""
