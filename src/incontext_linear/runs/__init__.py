"""What makes a run safe: alone in its folder, ended by any signal, its database sound.

locks        one writer at a time
interrupts   signals that end a run cleanly
run_table    a view of MLflow's table of runs
database     MLflow's SQLite file, made as a whole
side_by_side a runner for two nodes at a time
worker       how its processes begin
garbage      when Python looks for it
session      Kedro's session of a run, which uses the others
"""
