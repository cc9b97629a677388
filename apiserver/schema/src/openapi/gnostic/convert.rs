//! From the JSON document to the messages, piece by piece: the document is taken apart on the way.

use super::*;
use serde_json::{Map, Value};

fn object(value: Option<&mut Value>) -> Map<String, Value> {
    match value.map(Value::take) {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn text(map: &Map<String, Value>, key: &str) -> String {
    map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn integer(map: &Map<String, Value>, key: &str) -> i64 {
    map.get(key).and_then(Value::as_i64).unwrap_or_default()
}

fn number(map: &Map<String, Value>, key: &str) -> f64 {
    map.get(key).and_then(Value::as_f64).unwrap_or_default()
}

fn texts(map: &Map<String, Value>, key: &str) -> Vec<String> {
    let list = map.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn any(value: &Value) -> Any {
    Any { yaml: value.to_string() }
}

fn extensions(map: &Map<String, Value>) -> Vec<NamedAny> {
    map.iter()
        .filter(|(key, _)| key.starts_with("x-"))
        .map(|(key, value)| NamedAny { name: key.clone(), value: Some(any(value)) })
        .collect()
}

impl Document {
    /// From the JSON document, which is taken apart.
    pub(in crate::openapi) fn from_json(mut document: Value) -> Self {
        let mut map = object(Some(&mut document));
        let info = object(map.get_mut("info"));
        let security = SecurityRequirement {
            additional_properties: vec![NamedStringArray {
                name: "BearerToken".to_owned(),
                value: Some(StringArray::default()),
            }],
        };
        let schemes = object(map.get_mut("securityDefinitions")).into_iter().map(|(name, scheme)| {
            let scheme = object(Some(&mut { scheme }));
            let key = ApiKeySecurity {
                kind: text(&scheme, "type"),
                name: text(&scheme, "name"),
                place: text(&scheme, "in"),
                description: text(&scheme, "description"),
            };
            NamedSecurityDefinitionsItem { name, value: Some(SecurityDefinitionsItem { api_key: Some(key) }) }
        });
        let security_definitions = SecurityDefinitions { additional_properties: schemes.collect() };
        let path = |(name, item)| NamedPathItem { name, value: Some(PathItem::from_json(item)) };
        let paths = object(map.get_mut("paths")).into_iter().map(path).collect();
        let parameter = |(name, value)| NamedParameter { name, value: Some(parameter(value)) };
        let parameters = object(map.get_mut("parameters")).into_iter().map(parameter).collect();
        Document {
            swagger: text(&map, "swagger"),
            info: Some(Info { title: text(&info, "title"), version: text(&info, "version") }),
            paths: Some(Paths { path: paths }),
            definitions: Some(Definitions { additional_properties: schemas(map.get_mut("definitions")) }),
            parameters: Some(ParameterDefinitions { additional_properties: parameters }),
            security: vec![security],
            security_definitions: Some(security_definitions),
        }
    }
}

fn schemas(value: Option<&mut Value>) -> Vec<NamedSchema> {
    object(value)
        .into_iter()
        .map(|(name, schema)| NamedSchema { name, value: Some(Schema::from_json(schema)) })
        .collect()
}

fn parameters(map: &mut Map<String, Value>) -> Vec<ParametersItem> {
    let Some(Value::Array(list)) = map.get_mut("parameters").map(Value::take) else { return Vec::new() };
    list.into_iter()
        .map(|value| match value.get("$ref").and_then(Value::as_str) {
            Some(target) => ParametersItem {
                reference: Some(JsonReference { reference: target.to_owned() }),
                ..ParametersItem::default()
            },
            None => ParametersItem { parameter: Some(parameter(value)), ..ParametersItem::default() },
        })
        .collect()
}

fn parameter(mut value: Value) -> Parameter {
    let mut map = object(Some(&mut value));
    let (name, place, kind) = (text(&map, "name"), text(&map, "in"), text(&map, "type"));
    let (required, unique_items) = (flag(&map, "required"), flag(&map, "uniqueItems"));
    let description = text(&map, "description");
    let mut non_body = NonBodyParameter::default();
    match place.as_str() {
        "body" => {
            let schema = map.get_mut("schema").map(|schema| Schema::from_json(schema.take()));
            let body = Some(BodyParameter { name, place, required, schema });
            return Parameter { body, ..Parameter::default() };
        }
        "path" => {
            non_body.path = Some(PathParameter { required, place, description, name, kind, unique_items });
        }
        _ => {
            non_body.query = Some(QueryParameter { required, place, description, name, kind, unique_items });
        }
    }
    Parameter { non_body: Some(non_body), ..Parameter::default() }
}

impl PathItem {
    fn from_json(mut value: Value) -> Self {
        let mut map = object(Some(&mut value));
        let mut operation =
            |method: &str| map.get_mut(method).map(|operation| Operation::from_json(operation.take()));
        PathItem {
            get: operation("get"),
            put: operation("put"),
            post: operation("post"),
            delete: operation("delete"),
            options: operation("options"),
            head: operation("head"),
            patch: operation("patch"),
            parameters: parameters(&mut map),
        }
    }
}

impl Operation {
    fn from_json(mut value: Value) -> Self {
        let mut map = object(Some(&mut value));
        let responses = object(map.get_mut("responses")).into_iter().map(|(name, mut response)| {
            let mut response = object(Some(&mut response));
            let schema = response
                .get_mut("schema")
                .map(|schema| SchemaItem { schema: Some(Schema::from_json(schema.take())) });
            let response = Response { description: text(&response, "description"), schema };
            NamedResponseValue { name, value: Some(ResponseValue { response: Some(response) }) }
        });
        let responses = Responses { response_code: responses.collect() };
        Operation {
            tags: texts(&map, "tags"),
            description: text(&map, "description"),
            operation_id: text(&map, "operationId"),
            produces: texts(&map, "produces"),
            consumes: texts(&map, "consumes"),
            parameters: parameters(&mut map),
            responses: Some(responses),
            schemes: texts(&map, "schemes"),
            vendor_extension: extensions(&map),
        }
    }
}

impl Schema {
    fn from_json(mut value: Value) -> Self {
        let mut map = object(Some(&mut value));
        let additional_properties = match map.get_mut("additionalProperties").map(Value::take) {
            Some(Value::Bool(allowed)) => {
                Some(AdditionalPropertiesItem { boolean: Some(allowed), schema: None })
            }
            Some(schema @ Value::Object(_)) => {
                let schema = Some(Box::new(Schema::from_json(schema)));
                Some(AdditionalPropertiesItem { schema, boolean: None })
            }
            _ => None,
        };
        let properties = schemas(map.get_mut("properties"));
        let items =
            map.get_mut("items").map(|items| ItemsItem { schema: vec![Schema::from_json(items.take())] });
        let kind = text(&map, "type");
        let allowed = map.get("enum").and_then(Value::as_array).into_iter().flatten().map(any).collect();
        Schema {
            reference: text(&map, "$ref"),
            format: text(&map, "format"),
            title: text(&map, "title"),
            description: text(&map, "description"),
            default: map.get("default").map(any),
            multiple_of: number(&map, "multipleOf"),
            maximum: number(&map, "maximum"),
            exclusive_maximum: flag(&map, "exclusiveMaximum"),
            minimum: number(&map, "minimum"),
            exclusive_minimum: flag(&map, "exclusiveMinimum"),
            max_length: integer(&map, "maxLength"),
            min_length: integer(&map, "minLength"),
            pattern: text(&map, "pattern"),
            max_items: integer(&map, "maxItems"),
            min_items: integer(&map, "minItems"),
            unique_items: flag(&map, "uniqueItems"),
            max_properties: integer(&map, "maxProperties"),
            min_properties: integer(&map, "minProperties"),
            required: texts(&map, "required"),
            allowed,
            additional_properties: additional_properties.map(Box::new),
            kind: (!kind.is_empty()).then(|| StringArray { value: vec![kind] }),
            items,
            properties: (!properties.is_empty()).then_some(Properties { additional_properties: properties }),
            vendor_extension: extensions(&map),
        }
    }
}
