"""Small changes to the twins' sources, each of which the grid must reject: does the grid prove the code that runs?"""
