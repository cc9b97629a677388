//! The protobuf form of version 2: package `openapi.v2` of gnostic, as far as our documents use it.
//!
//! Field numbers are gnostic's `OpenAPIv2.proto`. Extensions and defaults travel as YAML; ours are JSON, which is YAML.

use prost::{Message, Oneof};
use serde_json::{Map, Value};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(string, tag = "2")]
    pub yaml: String,
}

/// A name and its value, which is how the format writes maps.
macro_rules! named {
    ($($name:ident($value:ty);)*) => {$(
        #[derive(Clone, PartialEq, Message)]
        pub(super) struct $name {
            #[prost(string, tag = "1")]
            pub name: String,
            #[prost(message, optional, tag = "2")]
            pub value: Option<$value>,
        }
    )*};
}

named! {
    NamedAny(Any);
    NamedParameter(Parameter);
    NamedPathItem(PathItem);
    NamedResponseValue(ResponseValue);
    NamedSchema(Schema);
    NamedSecurityDefinitionsItem(SecurityDefinitionsItem);
    NamedStringArray(StringArray);
}

macro_rules! map_of {
    ($($name:ident($item:ty);)*) => {$(
        #[derive(Clone, PartialEq, Message)]
        pub(super) struct $name {
            #[prost(message, repeated, tag = "1")]
            pub additional_properties: Vec<$item>,
        }
    )*};
}

map_of! {
    Definitions(NamedSchema);
    ParameterDefinitions(NamedParameter);
    Properties(NamedSchema);
    SecurityDefinitions(NamedSecurityDefinitionsItem);
    SecurityRequirement(NamedStringArray);
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StringArray {
    #[prost(string, repeated, tag = "1")]
    pub value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Document {
    #[prost(string, tag = "1")]
    pub swagger: String,
    #[prost(message, optional, tag = "2")]
    pub info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    pub paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    pub definitions: Option<Definitions>,
    #[prost(message, optional, tag = "10")]
    pub parameters: Option<ParameterDefinitions>,
    #[prost(message, repeated, tag = "12")]
    pub security: Vec<SecurityRequirement>,
    #[prost(message, optional, tag = "13")]
    pub security_definitions: Option<SecurityDefinitions>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Info {
    #[prost(string, tag = "1")]
    pub title: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Paths {
    #[prost(message, repeated, tag = "2")]
    pub path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PathItem {
    #[prost(message, optional, tag = "2")]
    pub get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    pub put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    pub post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    pub delete: Option<Operation>,
    #[prost(message, optional, tag = "6")]
    pub options: Option<Operation>,
    #[prost(message, optional, tag = "7")]
    pub head: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    pub patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    pub parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Operation {
    #[prost(string, repeated, tag = "1")]
    pub tags: Vec<String>,
    #[prost(string, tag = "3")]
    pub description: String,
    #[prost(string, tag = "5")]
    pub operation_id: String,
    #[prost(string, repeated, tag = "6")]
    pub produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    pub consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    pub parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    pub responses: Option<Responses>,
    #[prost(string, repeated, tag = "10")]
    pub schemes: Vec<String>,
    #[prost(message, repeated, tag = "13")]
    pub vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ParametersItem {
    #[prost(oneof = "ParametersItemOf", tags = "1, 2")]
    pub oneof: Option<ParametersItemOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum ParametersItemOf {
    #[prost(message, tag = "1")]
    Parameter(Parameter),
    #[prost(message, tag = "2")]
    Reference(JsonReference),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parameter {
    #[prost(oneof = "ParameterOf", tags = "1, 2")]
    pub oneof: Option<ParameterOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum ParameterOf {
    #[prost(message, tag = "1")]
    Body(Box<BodyParameter>),
    #[prost(message, tag = "2")]
    NonBody(NonBodyParameter),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NonBodyParameter {
    #[prost(oneof = "NonBodyParameterOf", tags = "3, 4")]
    pub oneof: Option<NonBodyParameterOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum NonBodyParameterOf {
    #[prost(message, tag = "3")]
    Query(QueryParameter),
    #[prost(message, tag = "4")]
    Path(PathParameter),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResponseValue {
    #[prost(oneof = "ResponseValueOf", tags = "1")]
    pub oneof: Option<ResponseValueOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum ResponseValueOf {
    #[prost(message, tag = "1")]
    Response(Response),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SchemaItem {
    #[prost(oneof = "SchemaItemOf", tags = "1")]
    pub oneof: Option<SchemaItemOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum SchemaItemOf {
    #[prost(message, tag = "1")]
    Schema(Schema),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AdditionalPropertiesItem {
    #[prost(oneof = "AdditionalPropertiesItemOf", tags = "1, 2")]
    pub oneof: Option<AdditionalPropertiesItemOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AdditionalPropertiesItemOf {
    #[prost(message, tag = "1")]
    Schema(Box<Schema>),
    #[prost(bool, tag = "2")]
    Boolean(bool),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SecurityDefinitionsItem {
    #[prost(oneof = "SecurityDefinitionsItemOf", tags = "2")]
    pub oneof: Option<SecurityDefinitionsItemOf>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum SecurityDefinitionsItemOf {
    #[prost(message, tag = "2")]
    ApiKey(ApiKeySecurity),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct JsonReference {
    #[prost(string, tag = "1")]
    pub reference: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct BodyParameter {
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub place: String,
    #[prost(bool, tag = "4")]
    pub required: bool,
    #[prost(message, optional, tag = "5")]
    pub schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct QueryParameter {
    #[prost(bool, tag = "1")]
    pub required: bool,
    #[prost(string, tag = "2")]
    pub place: String,
    #[prost(string, tag = "3")]
    pub description: String,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(string, tag = "6")]
    pub kind: String,
    #[prost(bool, tag = "20")]
    pub unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PathParameter {
    #[prost(bool, tag = "1")]
    pub required: bool,
    #[prost(string, tag = "2")]
    pub place: String,
    #[prost(string, tag = "3")]
    pub description: String,
    #[prost(string, tag = "4")]
    pub name: String,
    #[prost(string, tag = "5")]
    pub kind: String,
    #[prost(bool, tag = "19")]
    pub unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Responses {
    #[prost(message, repeated, tag = "1")]
    pub response_code: Vec<NamedResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(string, tag = "1")]
    pub description: String,
    #[prost(message, optional, tag = "2")]
    pub schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ApiKeySecurity {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub place: String,
    #[prost(string, tag = "4")]
    pub description: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Schema {
    #[prost(string, tag = "1")]
    pub reference: String,
    #[prost(string, tag = "2")]
    pub format: String,
    #[prost(string, tag = "3")]
    pub title: String,
    #[prost(string, tag = "4")]
    pub description: String,
    #[prost(message, optional, tag = "5")]
    pub default: Option<Any>,
    #[prost(double, tag = "6")]
    pub multiple_of: f64,
    #[prost(double, tag = "7")]
    pub maximum: f64,
    #[prost(bool, tag = "8")]
    pub exclusive_maximum: bool,
    #[prost(double, tag = "9")]
    pub minimum: f64,
    #[prost(bool, tag = "10")]
    pub exclusive_minimum: bool,
    #[prost(int64, tag = "11")]
    pub max_length: i64,
    #[prost(int64, tag = "12")]
    pub min_length: i64,
    #[prost(string, tag = "13")]
    pub pattern: String,
    #[prost(int64, tag = "14")]
    pub max_items: i64,
    #[prost(int64, tag = "15")]
    pub min_items: i64,
    #[prost(bool, tag = "16")]
    pub unique_items: bool,
    #[prost(int64, tag = "17")]
    pub max_properties: i64,
    #[prost(int64, tag = "18")]
    pub min_properties: i64,
    #[prost(string, repeated, tag = "19")]
    pub required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    pub allowed: Vec<Any>,
    #[prost(message, optional, boxed, tag = "21")]
    pub additional_properties: Option<Box<AdditionalPropertiesItem>>,
    #[prost(message, optional, tag = "22")]
    pub kind: Option<StringArray>,
    #[prost(message, optional, tag = "23")]
    pub items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    pub properties: Option<Properties>,
    #[prost(message, repeated, tag = "31")]
    pub vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    pub schema: Vec<Schema>,
}

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
    pub(super) fn from_json(mut document: Value) -> Self {
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
            let item = SecurityDefinitionsItem { oneof: Some(SecurityDefinitionsItemOf::ApiKey(key)) };
            NamedSecurityDefinitionsItem { name, value: Some(item) }
        });
        let security_definitions = SecurityDefinitions { additional_properties: schemes.collect() };
        let path = |(name, item)| NamedPathItem { name, value: Some(PathItem::from_json(item)) };
        let paths = object(map.get_mut("paths")).into_iter().map(path).collect();
        let parameter = |(name, value)| NamedParameter { name, value: parameter(value) };
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
        .map(|value| {
            let oneof = match value.get("$ref").and_then(Value::as_str) {
                Some(target) => {
                    Some(ParametersItemOf::Reference(JsonReference { reference: target.to_owned() }))
                }
                None => parameter(value).map(ParametersItemOf::Parameter),
            };
            ParametersItem { oneof }
        })
        .collect()
}

fn parameter(mut value: Value) -> Option<Parameter> {
    let mut map = object(Some(&mut value));
    let (name, place, kind) = (text(&map, "name"), text(&map, "in"), text(&map, "type"));
    let (required, unique_items) = (flag(&map, "required"), flag(&map, "uniqueItems"));
    let description = text(&map, "description");
    let oneof = match place.as_str() {
        "body" => {
            let schema = map.get_mut("schema").map(|schema| Schema::from_json(schema.take()));
            ParameterOf::Body(Box::new(BodyParameter { name, place, required, schema }))
        }
        "path" => ParameterOf::NonBody(NonBodyParameter {
            oneof: Some(NonBodyParameterOf::Path(PathParameter {
                required,
                place,
                description,
                name,
                kind,
                unique_items,
            })),
        }),
        _ => ParameterOf::NonBody(NonBodyParameter {
            oneof: Some(NonBodyParameterOf::Query(QueryParameter {
                required,
                place,
                description,
                name,
                kind,
                unique_items,
            })),
        }),
    };
    Some(Parameter { oneof: Some(oneof) })
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
            let schema = response.get_mut("schema").map(|schema| SchemaItem {
                oneof: Some(SchemaItemOf::Schema(Schema::from_json(schema.take()))),
            });
            let response = Response { description: text(&response, "description"), schema };
            let value = ResponseValue { oneof: Some(ResponseValueOf::Response(response)) };
            NamedResponseValue { name, value: Some(value) }
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
            Some(Value::Bool(allowed)) => Some(AdditionalPropertiesItemOf::Boolean(allowed)),
            Some(schema @ Value::Object(_)) => {
                Some(AdditionalPropertiesItemOf::Schema(Box::new(Schema::from_json(schema))))
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
            additional_properties: additional_properties
                .map(|oneof| Box::new(AdditionalPropertiesItem { oneof: Some(oneof) })),
            kind: (!kind.is_empty()).then(|| StringArray { value: vec![kind] }),
            items,
            properties: (!properties.is_empty()).then_some(Properties { additional_properties: properties }),
            vendor_extension: extensions(&map),
        }
    }
}
