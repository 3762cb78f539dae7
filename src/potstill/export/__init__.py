"""Export: student formats that other tools open without potstill. Importing this loads no torch.

stage.py        the stage: one artifact per entry of the recipe's `export`
base.py         the input and the interface of an exporter
huggingface.py  a folder that the plain `from_pretrained` of its task opens; a module of one's own with its file
gguf.py         GGUF files, opened in llama.cpp and compared with the student
gguf_file.py    a folder as one GGUF file: metadata, tokenizer, weights
llama_cpp.py    llama.cpp as an engine of a comparison
graph.py        a model as a graph, written for a runtime, opened there and compared with the student
onnx.py         ONNX graphs, in ONNX Runtime
openvino.py     the same in OpenVINO's format, in OpenVINO
onnx_file.py    tracing a model, and rounding its graph
adapter.py      a low-rank adapter, opened by peft on its base and compared with the student
sentence_transformers.py  an encoder with its pooling, opened in sentence-transformers and compared with the student
serving.py      an export's configurations for vLLM, SGLang, llama.cpp's server and Ollama, with its chat template
comparison.py   a student and its export in its engine, compared on the same prompts
end_tokens.py   the tokens at which the student stops by itself
"""
