"""Result files of runs: found, compared, exported."""
