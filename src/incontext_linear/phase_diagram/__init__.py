"""Which algorithm is nearest as depth, width or noise vary, and where that changes (paper, section
4).

variants     which of a sweep's variants make a diagram
resampling   SPD means over seeds and prompts, as observed and in every resample
nearest      the nearest algorithm at every value and k, and by what margin
transitions  where the nearest algorithm changes
"""
