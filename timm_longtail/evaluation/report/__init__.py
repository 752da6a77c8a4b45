"""The report page of runs: `reading` makes `RunReport`s of folders, `page` makes one HTML file of them."""
