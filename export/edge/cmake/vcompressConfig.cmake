# find_package(vcompress): a bundle's model in a C or C++ application.
#
#   vcompress_add_model(<target> BUNDLE <folder>
#                       [NAME <identifier>]       # of the header and of vcompress_<identifier>
#                       [KEY <public.pem>]        # the bundle must be signed with it
#                       [EMBED]                   # the model goes into the executable
#                       [DESTINATION <folder>]    # where `install` puts the model's file
#                       [GATE <gate.toml>]        # what the model must hold, or the build fails
#                       [GATE_ARGS <arg>...])     # more arguments for vbench
#
# Target vcompress::vcompress has the headers alone.
# VCOMPRESS_PYTHON names the Python that has vcompress; usually it is found.

if(CMAKE_VERSION VERSION_LESS 3.21)
  set(vcompress_FOUND FALSE)
  set(vcompress_NOT_FOUND_MESSAGE "vcompress needs CMake 3.21 or later, this is ${CMAKE_VERSION}")
  return()
endif()

get_filename_component(_vcompress_root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)

# The interpreter of the environment that this file lies in, then what the path offers.
set(_vcompress_candidates "${VCOMPRESS_PYTHON}")
foreach(_vcompress_up IN ITEMS "../../../../../.." "../../../../..")
  foreach(_vcompress_bin IN ITEMS bin/python3 Scripts/python.exe python.exe)
    list(APPEND _vcompress_candidates "${_vcompress_root}/${_vcompress_up}/${_vcompress_bin}")
  endforeach()
endforeach()
find_program(_vcompress_on_path NAMES python3 python NO_CACHE)
list(APPEND _vcompress_candidates "${_vcompress_on_path}")
set(_vcompress_python "")
# Without the folder that CMake runs in, where a file may have the name of a module of Python's.
set(_vcompress_start "import sys\nsys.path[:] = [p for p in sys.path if p]\n")
foreach(_vcompress_candidate IN LISTS _vcompress_candidates)
  if(_vcompress_candidate AND EXISTS "${_vcompress_candidate}")
    execute_process(
      COMMAND "${_vcompress_candidate}" -c "${_vcompress_start}import vcompress.export.edge"
      RESULT_VARIABLE _vcompress_result OUTPUT_QUIET ERROR_QUIET)
    if(_vcompress_result EQUAL 0)
      get_filename_component(_vcompress_python "${_vcompress_candidate}" ABSOLUTE)
      break()
    endif()
  endif()
endforeach()
if(NOT _vcompress_python)
  set(vcompress_FOUND FALSE)
  set(vcompress_NOT_FOUND_MESSAGE
    "no Python with vcompress was found; give -DVCOMPRESS_PYTHON=/path/to/python")
  return()
endif()
set(VCOMPRESS_PYTHON "${_vcompress_python}" CACHE FILEPATH "The Python that has vcompress" FORCE)

if(NOT TARGET vcompress::vcompress)
  add_library(vcompress::vcompress INTERFACE IMPORTED)
  set_target_properties(vcompress::vcompress PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_vcompress_root}/include")
endif()

set(VCOMPRESS_GATE "${CMAKE_CURRENT_LIST_DIR}/gate.py" CACHE INTERNAL "")

function(vcompress_add_model target)
  cmake_parse_arguments(
    PARSE_ARGV 1 arg "EMBED" "BUNDLE;NAME;KEY;GATE;DESTINATION" "GATE_ARGS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR
      "vcompress_add_model: unknown argument ${arg_UNPARSED_ARGUMENTS}; "
      "expected BUNDLE, NAME, KEY, EMBED, DESTINATION, GATE, GATE_ARGS.")
  endif()
  if(NOT TARGET "${target}")
    message(FATAL_ERROR "vcompress_add_model: there is no target '${target}'; add it first.")
  endif()
  if(NOT arg_BUNDLE)
    message(FATAL_ERROR "vcompress_add_model(${target}): give BUNDLE and the bundle's folder.")
  endif()
  if(NOT arg_NAME)
    string(MAKE_C_IDENTIFIER "${target}" arg_NAME)
  endif()
  get_filename_component(bundle "${arg_BUNDLE}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
  set(out "${CMAKE_CURRENT_BINARY_DIR}/vcompress/${arg_NAME}")
  set(more "")
  if(arg_EMBED)
    list(APPEND more "--embed")
  endif()
  if(arg_KEY)
    get_filename_component(key "${arg_KEY}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
    list(APPEND more "--key" "${key}")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${key}")
  endif()

  # CMake's lists end an entry at a semicolon, and not within brackets.
  foreach(path IN ITEMS "${bundle}" "${out}" "${arg_KEY}" "${arg_GATE}")
    if("${path}" MATCHES "[][;]")
      message(FATAL_ERROR
        "vcompress_add_model(${target}): '${path}' has a semicolon or a square bracket, which "
        "CMake's lists do not hold. Rename the folder.")
    endif()
  endforeach()

  # Looked at again whenever one of the bundle's files changes, and before it is verified: a bundle
  # that fails now is tried again by the next build.
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${bundle}/manifest.json")
  execute_process(
    COMMAND "${VCOMPRESS_PYTHON}" -c
            "import sys\nsys.path[:] = [p for p in sys.path if p]\nfrom vcompress.export.edge.__main__ import main\nsys.exit(main())"
            prepare "${bundle}" --name "${arg_NAME}" --out "${out}" ${more}
    RESULT_VARIABLE result OUTPUT_VARIABLE sources ERROR_VARIABLE said
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "vcompress_add_model(${target}): ${said}")
  endif()
  string(REPLACE ";" "\\;" sources "${sources}")
  string(REPLACE "\n" ";" sources "${sources}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${sources})

  target_include_directories("${target}" PRIVATE "${out}")
  target_link_libraries("${target}" PRIVATE vcompress::vcompress)
  set(model "${out}/${arg_NAME}.onnx")
  if(arg_EMBED)
    get_property(languages GLOBAL PROPERTY ENABLED_LANGUAGES)
    set(source "${out}/${arg_NAME}_data.c")
    if(NOT "C" IN_LIST languages)
      set_source_files_properties("${source}" PROPERTIES LANGUAGE CXX)
    endif()
    set_source_files_properties("${source}" PROPERTIES
      OBJECT_DEPENDS "${model}" COMPILE_OPTIONS "-Wa,-I${out}")
    target_sources("${target}" PRIVATE "${source}")
  else()
    add_custom_command(TARGET "${target}" POST_BUILD
      COMMAND "${CMAKE_COMMAND}" -E copy_if_different
              "${model}" "$<TARGET_FILE_DIR:${target}>/${arg_NAME}.onnx"
      VERBATIM)
    if(NOT arg_DESTINATION)
      set(arg_DESTINATION bin)
      if(CMAKE_INSTALL_BINDIR)
        set(arg_DESTINATION "${CMAKE_INSTALL_BINDIR}")
      endif()
    endif()
    install(FILES "${model}" DESTINATION "${arg_DESTINATION}")
  endif()

  if(arg_GATE)
    get_filename_component(gate "${arg_GATE}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
    if(NOT EXISTS "${gate}")
      message(FATAL_ERROR "vcompress_add_model(${target}): there is no gate file ${gate}.")
    endif()
    if(CMAKE_CROSSCOMPILING)
      message(WARNING
        "vcompress_add_model(${target}): the gate is measured on the machine that builds; its "
        "limits on latency say nothing about the device. Run vbench there.")
    endif()
    set(passed "${out}/${arg_NAME}.gate-passed")
    add_custom_command(
      OUTPUT "${passed}"
      COMMAND "${VCOMPRESS_PYTHON}" "${VCOMPRESS_GATE}" "${bundle}" --gate "${gate}"
              ${arg_GATE_ARGS}
      COMMAND "${CMAKE_COMMAND}" -E touch "${passed}"
      DEPENDS "${gate}" ${sources}
      COMMENT "vcompress: holding ${arg_NAME} against ${gate}"
      VERBATIM)
    add_custom_target("${target}_${arg_NAME}_gate" DEPENDS "${passed}")
    add_dependencies("${target}" "${target}_${arg_NAME}_gate")
  elseif(arg_GATE_ARGS)
    message(FATAL_ERROR "vcompress_add_model(${target}): GATE_ARGS without GATE.")
  endif()
endfunction()

set(vcompress_FOUND TRUE)
