def install_glue():
    pass
