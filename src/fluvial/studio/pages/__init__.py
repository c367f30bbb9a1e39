"""The pages of the studio. Each registers itself at an address when `register` of its module is called."""
