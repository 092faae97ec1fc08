# cmake -DINPUT=messages.csv -DOUTPUT=messages.cpp -DNAME=embedded_messages -P embed.cmake
# writes a source file that defines `extern const char* const NAME`, the bytes of INPUT and a 0. They
# are written as a list of characters because literals have a limit of length.
file(READ "${INPUT}" bytes HEX)
string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${bytes}")
file(WRITE "${OUTPUT}" "static const char bytes[] = {
${bytes}'\\0'};

extern const char* const ${NAME};
const char* const ${NAME} = bytes;
")
