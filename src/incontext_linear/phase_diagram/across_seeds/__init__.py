"""What holds over trainings: every curve of a sweep's variants as mean over its seeds.

measures  one variant's values, prompt by prompt where they are saved
summary   means over seeds, with intervals over seeds and prompts
"""
