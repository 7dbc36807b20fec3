# kvpool_test(NAME name SOURCES a.cc... LIBS lib... [LABEL unit|integration])
# One GoogleTest binary, one CTest entry per binary. Labels: `unit` (default) needs no other process,
# `integration` starts real daemons, built before it by depending on the target `kvpool_programs`.
# What is tested stays optimised; the tests' own code compiles in three fifths of the time with -Og.
# -fpch-preprocess: so that ccache sees the precompiled header.
set(KVPOOL_TEST_OPTIONS -Og -fpch-preprocess)
function(kvpool_test)
  cmake_parse_arguments(T "" "NAME;LABEL;TIMEOUT" "SOURCES;LIBS" ${ARGN})
  if(NOT T_LABEL)
    set(T_LABEL unit)
  endif()
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  if(KVPOOL_SANITIZE)
    math(EXPR T_TIMEOUT "${T_TIMEOUT} * 5")  # instrumented code is that much slower
  endif()
  add_executable(${T_NAME} ${T_SOURCES})
  target_link_libraries(${T_NAME} PRIVATE ${T_LIBS} kvpool_test_paths GTest::gtest GTest::gmock GTest::gtest_main)
  target_precompile_headers(${T_NAME} REUSE_FROM kvpool_test_paths)
  target_compile_options(${T_NAME} PRIVATE ${KVPOOL_TEST_OPTIONS})
  add_test(NAME ${T_NAME} COMMAND ${T_NAME})
  # die_after_fork=0: Process::Fork makes workers that start threads of their own.
  set_tests_properties(${T_NAME} PROPERTIES LABELS ${T_LABEL} TIMEOUT ${T_TIMEOUT}
    ENVIRONMENT "UBSAN_OPTIONS=print_stacktrace=1;TSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp:die_after_fork=0;OPENBLAS_NUM_THREADS=1")
  if(T_LABEL STREQUAL integration)
    # Deadlines of several real processes at once mean little on a machine that is busy with others.
    set_tests_properties(${T_NAME} PROPERTIES RUN_SERIAL ON)
  endif()
endfunction()

# Programs land in one folder, so that scripts and tests find them: build/<preset>/bin.
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
