# Which library may use which: the edge table of docs/architecture.md. Edges point down only.
# sh_library refuses, at configure time, a dependency that does not stand here; tools/tidy.py reads the
# same table and checks every #include against it.
set(SH_EDGES_common "")
set(SH_EDGES_proto "")
set(SH_EDGES_transport common proto)
set(SH_EDGES_recipe common)
set(SH_EDGES_formats common)
set(SH_EDGES_storage common)
set(SH_EDGES_sharding common)
set(SH_EDGES_dataset common formats recipe)
set(SH_EDGES_storage_service common proto transport storage dataset)
set(SH_EDGES_coordinator common proto transport recipe formats storage dataset)
set(SH_EDGES_worker common proto transport)
set(SH_EDGES_synthetic_teacher common dataset storage storage_service worker)
set(SH_EDGES_model common formats)
set(SH_EDGES_teacher_pool common formats dataset storage storage_service worker recipe model)
set(SH_EDGES_student common formats dataset storage storage_service worker recipe sharding model)
set(SH_EDGES_ctl common proto transport recipe formats storage storage_service dataset coordinator worker)
