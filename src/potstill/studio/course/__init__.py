"""The course: lessons, questions and labs. The texts are data, in Markdown and YAML beside this file."""
